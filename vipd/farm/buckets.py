"""Who owns which of the 256 buckets of a load balancing group (guide 13.5.6, 13.5.7.4). Pure.

The owners are a function of the configured powers and of the set of members: no server needs to know what
happened before, so a server that was cut off, restarted or installed anew agrees with the others at once.

How the function keeps moves few without a memory: every bucket has an order of preference among all hosts,
and belongs to the first member of it, as in rendezvous hashing; so with one member less only the buckets of
that member look further. The orders are not drawn at random but dealt out, level by level, so that every set
of members is served nearly in proportion; what is missing to the exact shares is moved at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from safekit.net.jhash import BUCKETS

NOBODY = -1
"""Owner of the buckets of a group when no member may have traffic of it."""

FULL = (1 << BUCKETS) - 1
"""The bitmap of a server that owns everything. Bit n is bucket n."""


def apportion(weights: Sequence[int], total: int) -> list[int]:
    """Integers that add up to `total`, in proportion to the weights: largest remainder, the earlier one first
    among equals. All zero when the weights are."""
    whole = sum(weights)
    if whole == 0:
        return [0] * len(weights)
    shares = [weight * total // whole for weight in weights]
    rest = sorted(range(len(weights)), key=lambda i: (-(weights[i] * total % whole), i))
    for i in rest[: total - sum(shares)]:
        shares[i] += 1
    return shares


def percentages(bits: Sequence[int]) -> list[int]:
    """Shares of the servers in percent; they add up to 100 unless nobody has anything (guide 7.14)."""
    return apportion(bits, 100)


def bitmap_text(bitmap: int) -> str:
    """As the guide prints it (4.3.5): eight groups of eight digits, bucket 255 first."""
    digits = f"{bitmap:064x}"
    return ":".join(digits[i : i + 8] for i in range(0, 64, 8))


def bitmap_of(owners: Iterable[int], node: int) -> int:
    """The bitmap of one server."""
    bitmap = 0
    for bucket, owner in enumerate(owners):
        if owner == node:
            bitmap |= 1 << bucket
    return bitmap


def _shuffle(*parts: int) -> bytes:
    return blake2b(b"".join(part.to_bytes(4, "big") for part in parts), digest_size=8).digest()


_SHUFFLED = sorted(range(BUCKETS), key=_shuffle)


@dataclass
class Shares:
    """One group: the power of each host (nodes are numbers; the order of the numbers is the order of the
    layout, which the guide shows for two servers: the first has the lower half).

    `owners` remembers its answers, nothing else.
    """

    powers: Mapping[int, int]
    _orders: list[list[int]] = field(default_factory=list, repr=False)
    _known: dict[frozenset[int], tuple[int, ...]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if any(power < 0 for power in self.powers.values()):
            raise ValueError("a power is 0 or more")
        self._hosts = sorted(node for node, power in self.powers.items() if power > 0)
        self._dealt: set[frozenset[int]] = set()
        first: list[int] = []
        for node, count in zip(self._hosts, self._quotas(self._hosts), strict=True):
            first += [node] * count
        self._orders = [[node] for node in first]

    def _quotas(self, hosts: Sequence[int]) -> list[int]:
        return apportion([self.powers[node] for node in hosts], BUCKETS)

    def owners(self, members: Iterable[int]) -> tuple[int, ...]:
        """Owner of each bucket while exactly these nodes take part; NOBODY when none of them may have any."""
        present = frozenset(members) & frozenset(self._hosts)
        if not present:
            return (NOBODY,) * BUCKETS
        if present not in self._known:
            self._known[present] = self._find(present)
        return self._known[present]

    def _find(self, present: frozenset[int]) -> tuple[int, ...]:
        absent = frozenset(self._hosts) - present
        self._deal(absent)
        found = [next((node for node in order if node in present), NOBODY) for order in self._orders]
        hosts = sorted(present)
        missing = dict(zip(hosts, self._quotas(hosts), strict=True))
        for owner in found:
            missing[owner] -= 1
        # Exact shares: in an order that depends on the bucket only, those who have too much give to the one that
        # the bucket prefers among those who have too little.
        for bucket in _SHUFFLED:
            if missing[found[bucket]] < 0:
                taker = min((node for node in hosts if missing[node] > 0), key=lambda node: _shuffle(bucket, node))
                missing[found[bucket]] += 1
                missing[taker] -= 1
                found[bucket] = taker
        return tuple(found)

    def _deal(self, absent: frozenset[int]) -> None:
        """Extend the orders of the buckets whose known preferences are all absent, the shorter ones first.

        All buckets that prefer the same set of nodes so far are dealt together, to those who would have the
        least if exactly that set were absent. So the result does not depend on what was asked before.
        """
        for level in range(1, len(absent) + 1):
            groups: dict[frozenset[int], list[int]] = {}
            for bucket, order in enumerate(self._orders):
                if len(order) >= level and absent.issuperset(order[:level]):
                    groups.setdefault(frozenset(order[:level]), []).append(bucket)
            for gone in sorted(groups, key=sorted):
                if gone not in self._dealt and len(gone) < len(self._hosts):
                    self._dealt.add(gone)
                    self._deal_group(gone, groups[gone])

    def _deal_group(self, gone: frozenset[int], buckets: list[int]) -> None:
        hosts = [node for node in self._hosts if node not in gone]
        missing = dict(zip(hosts, self._quotas(hosts), strict=True))
        waiting = set(buckets)
        for bucket, order in enumerate(self._orders):
            if bucket not in waiting:
                missing[next(node for node in order if node not in gone)] -= 1
        for bucket in sorted(buckets, key=lambda b: _shuffle(b, len(gone))):
            taker = max(hosts, key=lambda node: (missing[node], -node))
            missing[taker] -= 1
            self._orders[bucket].append(taker)
