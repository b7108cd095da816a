"""`semshare bench service`: the service under many clients, and what it adds to a request.

`run` starts the service in a process of its own (`server`), over the real model or one that only
takes its time (`stub`), and talks to it from this process (`clients`).
"""
