"""Expert inits: one file each. `registry("moesaic.experts", ExpertInit)` lists them; users pass the object."""
