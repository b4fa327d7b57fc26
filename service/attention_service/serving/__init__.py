"""Between the routes and the engine: who may run, and when the service takes calls."""
