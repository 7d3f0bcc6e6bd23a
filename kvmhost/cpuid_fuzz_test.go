package kvmhost

import (
	"encoding/json"
	"errors"
	"testing"
)

// FuzzIntersectCPUID: sets come from other nodes. Whatever they say, the result is refused or is a part of either, and
// each vCPU's own is as long as it.
func FuzzIntersectCPUID(f *testing.F) {
	f.Add([]byte(`[{"function":0,"eax":13},{"function":1,"eax":1,"ecx":4294967295,"edx":4294967295},
		{"function":13,"indexed":true,"eax":7,"ebx":832,"ecx":832},{"function":13,"index":1,"indexed":true,"eax":15},
		{"function":13,"index":2,"indexed":true,"eax":256,"ebx":576},{"function":2147483648,"eax":2147483656}]`),
		[]byte(`[{"function":0,"eax":7},{"function":1,"eax":1,"ecx":1},{"function":2147483648,"eax":2147483649}]`))
	f.Add([]byte(`[]`), []byte(`null`))
	f.Add([]byte(`[{"function":0},{"function":1},{"function":1}]`), []byte(`[{"function":0},{"function":1}]`))
	f.Fuzz(func(t *testing.T, mine, theirs []byte) {
		var a, b CPUIDSet
		if json.Unmarshal(mine, &a) != nil || json.Unmarshal(theirs, &b) != nil {
			return
		}
		out, err := IntersectCPUID(a, b)
		if err != nil {
			if !errors.Is(err, ErrCPUID) {
				t.Fatal(err)
			}
			return
		}
		for _, e := range out {
			if a.find(e.Function, e.Index) == nil || b.find(e.Function, e.Index) == nil {
				t.Errorf("leaf %#x/%d is not in both", e.Function, e.Index)
			}
		}
		out.forVCPU(5, Topology{PackageShift: 2, CoresPerPackage: 4}).entries()
	})
}
