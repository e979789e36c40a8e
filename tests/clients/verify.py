"""How an upstream in Python verifies the gateway's assertion: PyJWT and the key set on the ops listener.

Usage: verify.py JWKS_URL TOKEN ISSUER AUDIENCE. Prints the claims as JSON; ends with 1 and the reason if the token is refused.
"""

import json
import sys

import jwt

jwks_url, token, issuer, audience = sys.argv[1:]
try:
    # The client caches the key set and fetches it again when it meets an unknown `kid`.
    key = jwt.PyJWKClient(jwks_url).get_signing_key_from_jwt(token)
    claims = jwt.decode(
        token,
        key.key,
        algorithms=["EdDSA", "ES256"],
        issuer=issuer,
        audience=audience,
        options={"require": ["exp", "iat", "iss", "aud", "sub", "jti"]},
    )
except jwt.PyJWTError as refused:
    sys.exit(f"refused: {refused}")
print(json.dumps(claims))
