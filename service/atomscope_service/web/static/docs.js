// No proxy, no web fonts, no telemetry, no hosted agent: the page talks to this server only.
Scalar.createApiReference("#reference", {
  url: "/schema/openapi.json",
  withDefaultFonts: false,
  proxyUrl: "",
  telemetry: false,
  agent: { disabled: true },
  mcp: { disabled: true },
  showDeveloperTools: "never",
  hideClientButton: true,
  persistAuth: false,
});
