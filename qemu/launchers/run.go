// A launcher in Go: `localregistry run --json` prints one line when the registry is ready.
//
//	go run qemu/launchers/run.go DISK REPOSITORY:TAG
//
// It pulls the image's manifest over TLS, and trusts only the registry's CA. Standard library only.
package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
)

// Ready has the fields of the line that this program needs.
type Ready struct {
	Endpoint string `json:"endpoint"`
	CA       string `json:"ca"`
}

// Appliance is a running registry.
type Appliance struct {
	Ready
	run   *exec.Cmd
	stdin io.Closer
}

// Boot returns when the registry is ready.
func Boot(disk string, arguments ...string) (*Appliance, error) {
	program := os.Getenv("LOCALREGISTRY")
	if program == "" {
		program = "localregistry"
	}
	run := exec.Command(program, append([]string{"run", disk, "--end-with-stdin", "--quiet", "--json"}, arguments...)...)
	// Errors are on standard error.
	run.Stderr = os.Stderr
	// `run` ends when its standard input is closed, and so when this program ends in any way.
	stdin, err := run.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := run.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := run.Start(); err != nil {
		return nil, err
	}
	appliance := &Appliance{run: run, stdin: stdin}
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &appliance.Ready)
	}
	if err != nil {
		// Standard output was closed because `run` has failed: return its exit status.
		stdin.Close()
		if ended := run.Wait(); ended != nil {
			return nil, ended
		}
		return nil, err
	}
	return appliance, nil
}

// Stop shuts the registry down. The error is nil only if the guest reports a clean shutdown.
func (appliance *Appliance) Stop() error {
	appliance.stdin.Close()
	return appliance.run.Wait()
}

// Client trusts only the registry's CA.
func (appliance *Appliance) Client() (*http.Client, error) {
	pem, err := os.ReadFile(appliance.CA)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("no certificate is in %s", appliance.CA)
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}, nil
}

func pull(disk, image string) error {
	appliance, err := Boot(disk)
	if err != nil {
		return err
	}
	client, err := appliance.Client()
	if err == nil {
		err = manifest(client, appliance.Endpoint, image)
	}
	if ended := appliance.Stop(); err == nil {
		err = ended
	}
	return err
}

func manifest(client *http.Client, endpoint, image string) error {
	colon := strings.LastIndex(image, ":")
	request, err := http.NewRequest("GET", endpoint+"/v2/"+image[:colon]+"/manifests/"+image[colon+1:], nil)
	if err != nil {
		return err
	}
	request.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json")
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", image, response.Status)
	}
	fmt.Println("pulled", image, response.Header.Get("Docker-Content-Digest"))
	return nil
}

func main() {
	if len(os.Args) != 3 || !strings.Contains(os.Args[2], ":") {
		fmt.Fprintln(os.Stderr, "usage: run DISK REPOSITORY:TAG")
		os.Exit(2)
	}
	err := pull(os.Args[1], os.Args[2])
	if ended, is := err.(*exec.ExitError); is {
		os.Exit(ended.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
