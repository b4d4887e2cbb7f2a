"""Files: how one image, mask or table is stored, read in bounded memory and never run."""
