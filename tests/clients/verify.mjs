// How an upstream in Node verifies the gateway's assertion: the npm package jose and the key set on the ops listener.
//
// Usage: verify.mjs JWKS_URL TOKEN ISSUER AUDIENCE. Prints the claims as JSON; ends with 1 and the reason if the token is refused.

import { createRemoteJWKSet, jwtVerify } from "jose";

const [jwksUrl, token, issuer, audience] = process.argv.slice(2);
// The key set is cached and fetched again when an unknown `kid` is met.
const keys = createRemoteJWKSet(new URL(jwksUrl));
try {
  const { payload } = await jwtVerify(token, keys, {
    algorithms: ["EdDSA", "ES256"],
    issuer,
    audience,
    typ: "JWT",
    requiredClaims: ["exp", "iat", "sub", "jti"],
  });
  console.log(JSON.stringify(payload));
} catch (refused) {
  console.error(`refused: ${refused.message}`);
  process.exit(1);
}
