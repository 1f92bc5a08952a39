"""Telling people what happened, by mail and webhook: settings, the queue of messages, their delivery."""
