"""The Open Inference Protocol, `/v2`: every module is a model, and `sdpa` plain attention."""
