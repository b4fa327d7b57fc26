"""What the client and the service of Attention as a service agree on.

Pure functions and models, no I/O: tensors ⇄ bytes and JSON, requests and answers,
problems. ``docs/wire-format.md`` is the normative text.
"""
