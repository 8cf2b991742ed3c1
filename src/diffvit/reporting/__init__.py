"""Tables, plots and reports, made from run folders and never from live models."""
