package control

import (
	"encoding/json"
	"testing"

	"ironspan/engine/spec"
	"ironspan/engine/wire"
)

// FuzzInfo: what a node says of itself is refused or gives a plan that holds.
func FuzzInfo(f *testing.F) {
	good, err := json.Marshal(Info{
		Proto: ProtocolVersion, Wire: wire.Version, CPUs: 2, Memory: 1 << 33, Free: 1 << 20, TSCKHz: 2_000_000, CPUID: []byte("[]"),
		KVM: Probe{OK: true}, Uffd: Probe{OK: true}, Devices: []Device{{Name: "rxe0", Usable: true}, {Name: "rxe1", State: "down"}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"proto":1,"wire":1,"cpus":-1,"memory":18446744073709551615}`))
	f.Add([]byte(`null`))
	sp, err := spec.Parse("f.yaml", []byte("kernel: k\nnodes: [{addr: 'a:1', vcpus: 1, memory: 64M}, {addr: 'b:1', vcpus: 1, memory: 64M}]\n"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var in Info
		if json.Unmarshal(b, &in) != nil {
			return
		}
		r := &runner{spec: sp}
		if err := r.fits(1, &in); err != nil {
			if err.Error() == "" {
				t.Fatal("refused without a reason")
			}
			return
		}
		host := spec.Host{CPUs: in.CPUs, CPUID: in.CPUID, TSCKHz: in.TSCKHz}
		p, err := sp.Derive([]spec.Host{host, host})
		if err != nil {
			return
		}
		if err := p.Check(); err != nil {
			t.Fatalf("a derived plan does not hold: %v", err)
		}
	})
}

// FuzzEvents: whatever nodes report, the client comes to one outcome that it can print.
func FuzzEvents(f *testing.F) {
	f.Add([]byte(`{"kind":"ended","node":1,"outcome":{"kind":"node-lost","lost":0,"reason":"x"}}`), []byte(`{"kind":"ended","outcome":{"kind":"stopped"}}`))
	f.Add([]byte(`{"kind":"ended","outcome":{"kind":"","lost":200}}`), []byte(`{"kind":"log","text":"x"}`))
	f.Add([]byte(`{"kind":"ended","outcome":null}`), []byte(`{}`))
	plan := &spec.Plan{Nodes: make([]spec.PlanNode, 2)}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		outcomes := map[wire.NodeID]Outcome{}
		for i, b := range [][]byte{first, second} {
			var e Event
			if json.Unmarshal(b, &e) != nil || e.Outcome == nil {
				continue
			}
			outcomes[wire.NodeID(i)] = *e.Outcome
		}
		if len(outcomes) > 0 {
			_ = Decide(plan, outcomes, nil).String()
		}
	})
}
