"""The pair over HTTP: an OpenAI-compatible API, metrics and a web page."""
