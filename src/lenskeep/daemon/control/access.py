"""Whose signature counts and who may ask: keys and tokens."""

from __future__ import annotations

from lenskeep.daemon.control.route import Ask, Reply, Route
from lenskeep.daemon.control.streams import STREAMS
from lenskeep.errors import NotPermittedError
from lenskeep.messages.control import Key, KeyRequest, RevokeRequest, Token, TokenRequest, WhoAmI
from lenskeep.permissions import TABLE, covers, permissions_of


async def keys(ask: Ask) -> list[Key]:
    return await ask.rooms.keys.list()


async def trust(ask: Ask) -> Key:
    return await ask.rooms.keys.trust(ask.body, ask.who.by)


async def revoke(ask: Ask) -> Key:
    return await ask.rooms.keys.revoke(ask.part("id"), ask.body.reason, ask.who.by)


async def tokens(ask: Ask) -> list[Token]:
    return await ask.rooms.tokens.list()


async def add_token(ask: Ask) -> Reply:
    """Nobody makes a token that may more than he may himself; what is bound to slots makes none at all."""
    if not covers(ask.who.role, ask.body.role):
        raise NotPermittedError(f"{ask.who.by} is {ask.who.role} and makes no {ask.body.role}. Nothing was changed.")
    for name in ask.body.slots:
        await ask.rooms.views.slot(name)
    return Reply(await ask.rooms.tokens.add(ask.body, ask.who.by))


async def remove_token(ask: Ask) -> None:
    """Forget a token, and end what is still streamed to whoever holds it."""
    removed = [token.name for token in await ask.rooms.tokens.list() if ask.part("id") in (token.id, token.name)]
    await ask.rooms.tokens.remove(ask.part("id"), ask.who.by)
    for name in removed:
        ask.request.app[STREAMS].end_of(f"token:{name}")


async def whoami(ask: Ask) -> WhoAmI:
    who = ask.who
    return WhoAmI(
        name=who.by, role=who.role, anonymous=who.anonymous, person=who.person.casefold(), slots=sorted(who.slots),
        may=permissions_of(who.role),
        needs={permission: list(rule.roles) for permission, rule in TABLE.items()},
    )  # fmt: skip


ROUTES = [
    Route(
        method="GET", path="/v1/keys", permission="look", handler=keys, answer=list[Key],
        summary="List the keys that may sign bundles for this device",
    ),
    Route(
        method="POST", path="/v1/keys", permission="keys", handler=trust, answer=Key, body=KeyRequest, status=201,
        summary="Trust a public key for some model names",
    ),
    Route(
        method="POST", path="/v1/keys/{id}/revocation", permission="keys", handler=revoke, answer=Key,
        body=RevokeRequest,
        summary="Withdraw trust in a key",
    ),
    Route(
        method="GET", path="/v1/tokens", permission="read-access", handler=tokens, answer=list[Token],
        summary="List the tokens, without their secrets",
    ),
    Route(
        method="POST", path="/v1/tokens", permission="tokens", handler=add_token, answer=Token, body=TokenRequest,
        status=201, repeatable=False,
        summary="Make a token; its secret is in this one answer and nowhere else",
    ),
    Route(
        method="DELETE", path="/v1/tokens/{id}", permission="tokens", handler=remove_token, answer=None, status=204,
        summary="Remove a token",
    ),
    Route(
        method="GET", path="/v1/whoami", permission="look", handler=whoami, answer=WhoAmI,
        summary="Say who is asking, as the device sees it",
    ),
]  # fmt: skip
