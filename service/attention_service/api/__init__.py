"""HTTP: routes, headers, limits, problems → statuses. Thin: it translates and delegates."""
