"""Ray: the only package here that imports it. Data prepares, Train runs the loop on workers."""
