package localregistry_test

import (
	"testing"

	"localregistry"
)

func ExampleStart() {
	_ = func(t *testing.T) {
		reg := localregistry.Start(t, localregistry.Disk("images.erofs"))
		response, err := reg.Client().Get(reg.URL + "/v2/test/hello/manifests/latest")
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		reg.AssertPulled("test/hello:latest", localregistry.Times(1))
	}
}

func ExampleRegistry_With() {
	_ = func(t *testing.T) {
		reg := localregistry.Start(t, localregistry.Disk("images.erofs"))
		for _, node := range []string{"10.1.0.7", "10.1.0.8"} {
			node := node
			t.Run(node, func(t *testing.T) {
				t.Parallel()
				// … the node pulls …
				reg.With(t).AssertPulled("test/hello:latest", localregistry.By(node))
			})
		}
	}
}

func ExampleRegistry_Faults() {
	_ = func(t *testing.T) {
		reg := localregistry.Start(t, localregistry.Serve("build/images"))
		reg.Faults().Add(`{"rules": [{"id": "busy", "match": {"endpoint": "blob"}, "when": {"first": 1}, "do": {"status": 503}}]}`)
		// … a client pulls, and tries again …
		reg.AssertFault("busy", localregistry.Times(1))
		reg.AssertPulled("test/hello:latest")
	}
}
