"""The small model and its router inside vLLM, a plugin for unmodified servers, and what asks them.

`processor` alone needs vLLM beside it; `plugin` and `architectures` do once they are called.
"""
