"""Ray Serve: a finished run as a service over HTTP."""
