module localregistry

go 1.19
