"""The laws that parts have to keep, and the small problems they are checked on.

``fedsim check PKG.MOD:CLASS`` runs them on anybody's own part. `bench` has six clients' quadratics, `laws` what must
hold on them. They may import `clients`, `participation`, `objective` and what is below. Start with `laws`.
"""
