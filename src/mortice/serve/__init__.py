"""The HTTP edge: the OpenAI routes, the admin routes, metrics and the dashboard page.

Turns text into token ids and back; reaches workers only through `cluster`.
"""
