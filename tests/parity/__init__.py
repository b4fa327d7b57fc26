"""Live comparison of the running service with transformers and with libraries that draw."""
