"""HTTP routes, one module per resource. `Ingress` inherits all of them.

They are methods, because Serve binds the routes of the deployment class to the replica. Each class lists the attributes
of Ingress that it uses.
"""
