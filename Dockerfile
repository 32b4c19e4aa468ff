# Waybill in an image that holds the program, the authorities' certificates, and
# nothing else: no shell, no package manager, no root.
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY cmd cmd
COPY relay relay
COPY metrics metrics
COPY logtrack logtrack
ARG VERSION=dev
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X waybill/cmd/internal/app.Version=${VERSION}" -o /out/waybill ./cmd/waybill \
    && mkdir -p /out/var/lib/waybill /out/tmp

FROM scratch
LABEL org.opencontainers.image.title="Waybill" \
      org.opencontainers.image.description="An SMTP relay that shows where every message is" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /usr/share/zoneinfo /usr/share/zoneinfo
COPY --from=build /out/waybill /waybill
COPY --from=build --chown=65532:65532 /out/var/lib/waybill /var/lib/waybill
COPY --from=build --chown=65532:65532 /out/tmp /tmp
USER 65532:65532
VOLUME /var/lib/waybill
EXPOSE 2525 8025
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=20s --retries=3 CMD ["/waybill", "healthcheck"]
ENTRYPOINT ["/waybill"]
CMD ["serve", "--config", "/etc/waybill/waybill.yaml"]
