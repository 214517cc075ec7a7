"""The one IR of the language, in two dialects: tile operators, and the thread level that is lowered to.

It must not know frontends, passes or back ends.
"""
