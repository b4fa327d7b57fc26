"""The domain: from a request to its outputs and weights, without HTTP."""
