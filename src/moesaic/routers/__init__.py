"""Router inits: one file each. `registry("moesaic.routers", RouterInit)` lists them; users pass the object."""
