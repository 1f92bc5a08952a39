"""What the servers of a farm say to each other: sealed with the keys of the module, on every lan, in the form that each
of them understands."""

from __future__ import annotations

from collections.abc import Callable

from safekit.bus.endpoint import BusError
from safekit.model.types import Lan
from safekit.process.frame import Context
from safekit.wire import protocol
from safekit.wire.keys import wire_keys
from safekit.wire.rotation import Rotation, follow_keys
from safekit.wire.seal import Opener, Sealer, next_epoch
from vipd.farm.links import Links
from vipd.farm.wire import (
    Bye,
    OtherConfiguration,
    Told,
    WireError,
    configuration_id,
    configuration_of,
    decode,
    encode,
)


class Talk:
    """`heard(message)` is called for each authentic message of another server about itself.

    Raises BusError('farm_key') when the keys cannot be read. epoch: grows with every life of this process.
    """

    def __init__(
        self, context: Context, port: int, names: tuple[str, ...], groups: int, heard: Callable[[Told | Bye], None]
    ) -> None:
        self._context, self._names, self._groups, self._heard = context, names, groups, heard
        self._configuration = configuration_id(context.config, names)
        self._configuration_1 = configuration_id(context.config, names, context.cluster)
        try:
            self._rotation = Rotation(wire_keys(context.module))
            self.epoch = next_epoch(context.paths.var / "farm.epoch")
        except (OSError, ValueError) as error:
            raise BusError("farm_key", f"farm: {error}; apply the cluster configuration again") from None
        wire = f"farm/{context.module}"
        self._sealer = Sealer(self._rotation.keys[0], wire, context.node, self.epoch)
        self._opener = Opener(self._rotation.keys, wire, names)
        self._links = Links(
            context.log, self._lans(), port, context.node, names, self._sealer, self._opener, self._receive
        )

    def _lans(self) -> tuple[Lan, ...]:
        context = self._context
        found = map(context.cluster.lan, context.config.lan_names())
        return tuple(lan for lan in found if lan is not None and lan.framework)

    async def open(self) -> None:
        """Begin to hear."""
        await self._links.open()

    def close(self) -> None:
        self._links.close()

    async def follow_lans(self) -> None:
        """The lans of the cluster have changed, or the addresses of names may have."""
        self._configuration_1 = configuration_id(self._context.config, self._names, self._context.cluster)
        await self._links.use(self._lans())

    async def follow_keys(self) -> None:
        """Use other keys as soon as there are some, for ever."""

        def rekey() -> None:
            self._sealer.use(self._rotation.keys[0])
            self._opener.use(self._rotation.keys)

        await follow_keys(self._context.module, self._rotation, rekey)

    def send(self, message: Told | Bye) -> None:
        """To every other server, on every lan."""
        old = self._links.version == protocol.OLDEST
        self._links.send(encode(message, self._configuration_1 if old else self._configuration))

    def datagrams(self) -> dict[str, int]:
        """What was sent, accepted and refused."""
        links = self._links
        return {"sent": links.sent, "accepted": links.accepted, "refused": links.refused}

    def _receive(self, sender: str, payload: bytes) -> None:
        old = configuration_of(payload) == self._configuration_1
        try:
            configuration = self._configuration_1 if old else self._configuration
            message = decode(payload, configuration, len(self._names), self._groups)
        except OtherConfiguration as error:
            self._links.complain(sender, "configuration", f"{error}: apply the same one on every server")
            return
        except WireError as error:
            self._links.complain(sender, "message", str(error))
            return
        if self._names[message.node if isinstance(message, Bye) else message.pulse.sender] == sender:
            self._heard(message)
