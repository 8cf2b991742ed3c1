"""Data sources, the image decoder, the validation split and augmentation; import from the modules themselves."""
