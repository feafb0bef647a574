"""Plans: what of a chain to cache, in how many variants and in which form, by the energy of the whole training."""
