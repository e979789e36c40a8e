# The gateway as a small image: built from the locked sources with a profile of its use, run as a numeric user that owns nothing but its data.
#
#   docker build --tag assure-gateway .
#   docker run --publish 8080:8080 --volume assure-gateway:/var/lib/assure-gateway \
#     --volume ./gateway.yaml:/etc/assure-gateway/gateway.yaml:ro assure-gateway
#
# Environment:
#   ASSURE_GATEWAY_CONFIG  the configuration file; /etc/assure-gateway/gateway.yaml unless set
#   ASSURE_ADMIN_TOKEN     a user's token for the subcommands `keys` and `activity`; never needed by `run`
#   any ${NAME}            that the configuration refers to
# The configuration must listen on 0.0.0.0 (or [::]) to be reached from outside, and keep `store.embedded.path` and
# `audit.spool.path` under /var/lib/assure-gateway, which is the working directory and the only writable place.
# 8081 (admin) and 9090 (ops) are for the inside of a network: publish them nowhere else.

FROM rust:1.95-slim-bookworm AS build
# aws-lc is C and assembly: it needs a compiler and cmake, nothing from the network. The trust roots are for https
# upstreams and key sets. What follows them trains the profile that the released binary is compiled with.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates cmake gcc g++ libc6-dev make \
        nghttp2-client openssl python3 redis-server util-linux \
    && rm -rf /var/lib/apt/lists/* \
    && rustup component add llvm-tools
WORKDIR /build
# Only what the binary is made of, so that a changed test or document does not rebuild it.
COPY Cargo.toml Cargo.lock ./
COPY config config
COPY src src
COPY loadtest loadtest
# Then all that the image has: the binary, the loader and the few libraries that it names, the trust roots.
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/build/target,sharing=locked \
    loadtest/release \
    && install -D target/released/assure-gateway /out/usr/local/bin/assure-gateway \
    && ldd target/released/assure-gateway | grep -o '/[^ ]*' | xargs cp --parents --dereference --target-directory=/out \
    && cp --parents --dereference --target-directory=/out /etc/ssl/certs/ca-certificates.crt \
    && install -d -m 0700 /data

# No shell, no package manager, no other program.
FROM scratch
COPY --from=build /out /
# A number and not a name, so that an orchestrator can see that it is not root.
COPY --from=build --chown=65532:65532 /data /var/lib/assure-gateway
USER 65532:65532
WORKDIR /var/lib/assure-gateway
VOLUME ["/var/lib/assure-gateway"]
ENV ASSURE_GATEWAY_CONFIG=/etc/assure-gateway/gateway.yaml
EXPOSE 8080 8081 9090
# SIGTERM drains; the orchestrator's patience must be longer than `edge.drain_notice`, `edge.drain` and 25 s together.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 \
    CMD ["/usr/local/bin/assure-gateway", "healthcheck", "--ops", "http://127.0.0.1:9090"]
ENTRYPOINT ["/usr/local/bin/assure-gateway"]
CMD ["run"]
