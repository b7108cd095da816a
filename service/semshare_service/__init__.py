"""The semshare service: one model behind a REST interface, and the clients that call it.

    HTTP request → wire (JSON or msgpack) → schemas → worker queue → engine → replies → HTTP

`app.create_app` builds the aiohttp application, `serve.run` binds it, `client` calls it.
"""
