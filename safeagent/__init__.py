"""The SNMP agent (guide 10.8): one process per server, off by default, which reads what the modules publish."""
