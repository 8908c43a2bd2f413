"""What a scenario file says: read, checked, and written out again with every default.

`load` reads a file, `sections` is what it becomes, `checks` says which sections do not go together, `schema` makes the
JSON Schema for editors. They may import every package of parts, but not the engine. Start with `sections`.
"""
