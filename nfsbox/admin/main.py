"""The process nfsadmin."""

from __future__ import annotations

from nfsbox.admin.service import Admin
from safekit.bus.endpoint import Handler
from safekit.process.frame import Context, run


def main() -> None:
    """Entry point."""
    admins: list[Admin] = []

    def handler(context: Context) -> Handler:
        admins.append(Admin(context, adopting=True))
        return admins[0].requests().handle

    async def serve(context: Context) -> None:
        await admins[0].adopt()
        keeping = admins[0].asking.spawn(admins[0].keep_in_step())
        await context.stopping.wait()
        keeping.cancel()

    run("nfsadmin", serve, handler=handler)


if __name__ == "__main__":
    main()
