"""The small model and its router inside vLLM: a plugin for unmodified servers.

Only `wire` may be imported without vLLM.
"""
