"""The HTTP interface of a replica.

In reading order: routes.py, schemas.py, errors.py, codes.py, access.py, request_body.py, version_stamp.py, asgi.py.
"""
