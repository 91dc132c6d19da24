"""The HTTP interface of a replica.

Routes, types of requests and answers, and the ASGI middleware around them.
"""
