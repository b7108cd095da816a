"""The service described: `/openapi.json`, made from the code, and `/reference`, made from it."""
