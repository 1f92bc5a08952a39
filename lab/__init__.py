"""Whole clusters on one machine, in network namespaces: the command `safelab`.

One process, the keeper, holds a lab: it lives in the network namespace that is the lab's switch, and every other
process of the lab dies with it. Interfaces and mounts exist only inside namespaces, so that nothing of a lab can
outlive its processes but its directory, which `down`, the next `up` of that name or `gc` removes.
"""
