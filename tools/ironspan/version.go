package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"ironspan/engine/cluster"
	"ironspan/engine/control"
	"ironspan/engine/wire"
)

// buildInfo is what is known of how this program was built.
type buildInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Time     string `json:"time,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
	Control  int    `json:"control_protocol"`
	Mesh     int    `json:"mesh_protocol"`
	Wire     int    `json:"wire_protocol"`
}

func build() buildInfo {
	b := buildInfo{
		Version: "devel", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
		Control: control.ProtocolVersion, Mesh: cluster.ProtocolVersion, Wire: wire.Version,
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		b.Version = v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

type versionCmd struct {
	JSON bool `help:"Write JSON."`
}

func (versionCmd) Help() string {
	return "Nodes and the client must speak the same protocols; those of one build always do."
}

func (v *versionCmd) Run(c *console) error {
	b := build()
	if v.JSON {
		enc := json.NewEncoder(c.out)
		enc.SetIndent("", "  ")
		return enc.Encode(b)
	}
	fmt.Fprintf(c.out, "ironspan %s", b.Version)
	if b.Revision != "" {
		fmt.Fprintf(c.out, " (%.12s", b.Revision)
		if b.Modified {
			fmt.Fprint(c.out, ", modified")
		}
		fmt.Fprint(c.out, ")")
	}
	fmt.Fprintf(c.out, " %s %s\nprotocols: control %d, mesh %d, wire %d\n", b.Go, b.Platform, b.Control, b.Mesh, b.Wire)
	return nil
}
