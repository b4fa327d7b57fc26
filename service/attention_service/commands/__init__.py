"""Commands of the command line that take more than a function, each in a file of its own.

- ``common``: what all commands share: settings, messages, tables.
- ``export``: a module of published weights.
- ``check``: known cases on the providers of this machine.
- ``attend``: one request answered here; of a text, a map.
- ``given``: what that request is read from.
- ``heat_map``: weights as a picture.
- ``modules``: the modules of a folder.
"""
