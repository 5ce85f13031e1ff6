"""How a section of the configuration declares its fields, and how yaml and flags are read."""
