"""Data sets made of others before a training: another form, another modality."""
