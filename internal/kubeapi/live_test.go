package kubeapi

import (
	"testing"
)

func TestAtARealAPIServer(t *testing.T) {
	c := startCluster(t)
	t.Run("objects are applied and kept", c.testApply)
}
