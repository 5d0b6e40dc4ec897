"""INT8 after training: baseline and merged model, calibrated on the same images."""
