"""Arrays and how they are stored: one flat vector, 16-bit floats, HDF5 files that are whole or absent."""
