"""What strangers send to the web service is read here: HTTP by `safehttp`, TLS by `safetls`. They have no rights."""
