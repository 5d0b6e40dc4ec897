"""The merged model as a file that other runtimes load."""
