"""The farm part of vipd: who takes part, who owns which bucket, and the packet filters that make it so."""
