"""A client of the tensor stream that keeps to no rules but those of gRPC."""

import grpc

from tests.streams import StreamWorld, authority
from wardround_common.stream.limits import (
    CHANNEL_OPTIONS,
    RUN_KEY,
    SESSION,
    TOKEN_KEY,
    Identity,
)
from wardround_common.stream.outbox import Outbox
from wardround_common.stream.parts import (
    from_wire,
    to_wire,
)
from wardround_common.types import SiteId


class Intruder:
    """A hand-made client of the stream.

    Args:
        world: the aggregator.
        identity: its certificate and key; None for none.
        sent: metadata other than those of the first site's invitation.
    """

    def __init__(
        self,
        world: StreamWorld,
        identity: Identity | None,
        **sent: str,
    ) -> None:
        invite = world.server.invite(SiteId("a"))
        credentials = grpc.ssl_channel_credentials(
            authority().pem,
            identity.key if identity else None,
            identity.certificate if identity else None,
        )
        self.channel = grpc.secure_channel(invite.address, credentials, CHANNEL_OPTIONS)
        self.outbox = Outbox()
        metadata = {RUN_KEY: invite.run, TOKEN_KEY: invite.token, **sent}
        self.call = self.channel.stream_stream(SESSION, to_wire, from_wire)(
            self.outbox, metadata=tuple(metadata.items()), timeout=10
        )

    def status(self) -> grpc.StatusCode:
        """How the call ended."""
        try:
            list(self.call)
        except grpc.RpcError as error:
            return error.code()  # type: ignore[attr-defined,no-any-return]
        return grpc.StatusCode.OK

    def close(self) -> None:
        self.outbox.close()
        self.call.cancel()
        self.channel.close()
